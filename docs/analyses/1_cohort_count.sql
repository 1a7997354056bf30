-- How many persons have each of the ten commonest conditions, and how old are they then?
select
    coalesce(concept.concept_name, 'not in the vocabulary') as condition_name,
    first_occurrences.condition_concept_id,
    count(*) as persons,
    round(
        avg(extract(year from first_occurrences.first_date) - person.year_of_birth), 1
    ) as mean_age
from (
    select
        person_id,
        condition_concept_id,
        min(condition_start_date) as first_date
    from condition_occurrence
    where condition_concept_id <> 0
    group by person_id, condition_concept_id
) as first_occurrences
inner join person on first_occurrences.person_id = person.person_id
left join concept on first_occurrences.condition_concept_id = concept.concept_id
group by concept.concept_name, first_occurrences.condition_concept_id
order by persons desc, first_occurrences.condition_concept_id
limit 10
