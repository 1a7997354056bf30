-- One row per cohort, frequent condition and five years of age: first occurrences per
-- 1,000 years of persons who are observed and have not had it. What a person has on the
-- first day was there before: no new case, and no person at risk.
with

persons as (

    select
        cohort,
        person_number,
        year_of_birth,
        cast(extract(year from first_date) as int) - year_of_birth
        + (dayofyear(first_date) - 1) / 366.0 as age_in,
        cast(extract(year from exit_date) as int) - year_of_birth
        + (dayofyear(exit_date) - 1) / 366.0 as age_out
    from {{ ref('temporal_persons') }}
    where first_date <= exit_date

),

concepts as (

    select * from {{ ref('temporal_concepts') }}
    where source_table = 'condition_occurrence' and table_rank <= 50

),

bands as (
    {% for age_from in range(0, 120, 5) %}
        select {{ age_from }} as age_from
        {% if not loop.last %}union all{% endif %}
    {%- endfor %}

),

observed as (

    select
        persons.cohort,
        bands.age_from,
        sum(
            least(persons.age_out, bands.age_from + 5)
            - greatest(persons.age_in, bands.age_from)
        ) as years
    from persons
    inner join bands
        on
            persons.age_out > bands.age_from
            and persons.age_in < bands.age_from + 5
    group by 1, 2

),

onsets as (

    select
        persons.cohort,
        concepts.concept_id,
        concepts.table_rank,
        persons.age_in,
        persons.age_out,
        cast(extract(year from onsets.onset_date) as int) - persons.year_of_birth
        + (dayofyear(onsets.onset_date) - 1) / 366.0 as age
    from {{ ref('temporal_onsets') }} as onsets
    inner join persons on onsets.person_number = persons.person_number
    inner join concepts on onsets.concept_number = concepts.concept_number

),

-- of those who have had it: no longer at risk
past as (

    select
        onsets.cohort,
        onsets.concept_id,
        bands.age_from,
        cast(
            sum(
                case
                    when
                        onsets.age >= bands.age_from
                        and onsets.age < bands.age_from + 5
                        and onsets.age > onsets.age_in
                        and onsets.age <= onsets.age_out
                        then 1
                    else 0
                end
            ) as bigint
        ) as onsets,
        sum(
            greatest(
                least(onsets.age_out, bands.age_from + 5)
                - greatest(onsets.age, bands.age_from),
                0
            )
        ) as years
    from onsets
    inner join bands
        on
            onsets.age < bands.age_from + 5
            and (onsets.age_out > bands.age_from or onsets.age >= bands.age_from)
    group by 1, 2, 3

),

joined as (

    select
        observed.cohort,
        concepts.concept_id,
        concepts.table_rank,
        observed.age_from,
        coalesce(past.onsets, 0) as onsets,
        observed.years - coalesce(past.years, 0) as person_years
    from observed
    cross join concepts
    left join past
        on
            observed.cohort = past.cohort
            and concepts.concept_id = past.concept_id
            and observed.age_from = past.age_from

),

final as (

    select
        *,
        case when person_years > 0 then 1000 * onsets / person_years end as rate
    from joined

)

select * from final
