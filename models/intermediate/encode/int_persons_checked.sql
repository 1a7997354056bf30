-- One row per row of the source's person table: the first row of each person_id is
-- encoded, the others have a reason. A hash of the id chooses the split.
with

source_persons as (

    select * from {{ ref('stg_omop__person') }}

),

numbered as (

    select
        person_id,
        coalesce(gender_concept_id, 0) as gender_concept_id,
        coalesce(race_concept_id, 0) as race_concept_id,
        coalesce(ethnicity_concept_id, 0) as ethnicity_concept_id,
        year_of_birth,
        gender_concept_id is null
        or race_concept_id is null
        or ethnicity_concept_id is null as has_null_concept,
        row_number() over (
            partition by person_id
            order by
                year_of_birth nulls last,
                gender_concept_id nulls last,
                race_concept_id nulls last,
                ethnicity_concept_id nulls last
        ) as repetition,
        {{ dbt.hash(dbt.concat([
            "'" ~ var('split_salt') ~ ":'",
            'cast(person_id as ' ~ dbt.type_string() ~ ')'
        ])) }} as person_hash
    from source_persons

),

-- the user's own split, if there is one: whom it does not name is in none of the three
own_splits as (

    select
        person_id,
        min(case lower(trim(split))
            when 'train' then 'train'
            when 'validation' then 'validation'
            when 'val' then 'validation'
            when 'test' then 'holdout'
            when 'holdout' then 'holdout'
            else 'reserve'
        end) as split
    from {{ ref('stg_omop__patient_splits') }}
    group by 1

),

counted as (

    select
        count(distinct person_id) as person_count,
        count(*) as row_count,
        (select count(*) from own_splits) as own_count
    from source_persons

),

checked as (

    select
        numbered.person_id,
        numbered.gender_concept_id,
        numbered.race_concept_id,
        numbered.ethnicity_concept_id,
        numbered.year_of_birth,
        numbered.has_null_concept,
        -- 70, 80 and 90 % of the eight hexadecimal digits, compared as text
        case
            when counted.own_count > 0 then coalesce(own_splits.split, 'reserve')
            when substr(numbered.person_hash, 1, 8) < 'b3333333' then 'train'
            when substr(numbered.person_hash, 1, 8) < 'cccccccc' then 'validation'
            when substr(numbered.person_hash, 1, 8) < 'e6666666' then 'holdout'
            else 'reserve'
        end as split,
        -- files hold ranges of ids: all that is written then has one order, by person
        cast(
            floor(
                (
                    row_number() over (
                        order by numbered.person_id, numbered.repetition
                    ) - 1
                )
                * case
                    when counted.person_count <= 40000 then 2
                    when counted.person_count <= 160000 then 4
                    when counted.person_count <= 320000 then 8
                    when counted.person_count <= 640000 then 16
                    else 32
                end
                / counted.row_count
            ) as int
        ) as part,
        case
            when numbered.person_id is null then 'no_person_id'
            when numbered.repetition > 1 then 'repeated_person'
        end as reason
    from numbered
    cross join counted
    left join own_splits on numbered.person_id = own_splits.person_id

)

select * from checked
